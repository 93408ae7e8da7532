"""`nlft-ray evaluate` on a cluster: ray job submit --working-dir . -- python pipelines/evaluate.py --config FILE …"""

import sys

from nlft_ray.cli.main import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
