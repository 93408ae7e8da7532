"""`nlft-ray plan` where it is to run: ray job submit --working-dir . -- python pipelines/plan.py my-org/my-model …"""

import sys

from nlft_ray.cli.main import main

if __name__ == "__main__":
    main(["plan", *sys.argv[1:]])
