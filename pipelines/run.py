"""`nlft-ray run` on a cluster: ray job submit --working-dir . -- python pipelines/run.py --config FILE …"""

import sys

from nlft_ray.cli.main import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:]])
