"""`nlft-ray sample` on a cluster: ray job submit --working-dir . -- python pipelines/sample.py --config FILE …"""

import sys

from nlft_ray.cli.main import main

if __name__ == "__main__":
    main(["sample", *sys.argv[1:]])
