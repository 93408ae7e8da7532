"""`nlft-ray report` on a cluster: ray job submit --working-dir . -- python pipelines/report.py --config FILE …"""

import sys

from nlft_ray.cli.main import main

if __name__ == "__main__":
    main(["report", *sys.argv[1:]])
