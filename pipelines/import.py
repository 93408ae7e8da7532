"""`nlft-ray import` on a cluster: ray job submit --working-dir . -- python pipelines/import.py --config FILE …"""

import sys

from nlft_ray.cli.main import main

if __name__ == "__main__":
    main(["import", *sys.argv[1:]])
