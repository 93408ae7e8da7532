"""`nlft-ray export` on a cluster: ray job submit --working-dir . -- python pipelines/export.py --config FILE …"""

import sys

from nlft_ray.cli.main import main

if __name__ == "__main__":
    main(["export", *sys.argv[1:]])
