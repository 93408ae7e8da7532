"""`nlft-ray weights` on a cluster: ray job submit --working-dir . -- python pipelines/weights.py --config FILE …"""

import sys

from nlft_ray.cli.main import main

if __name__ == "__main__":
    main(["weights", *sys.argv[1:]])
