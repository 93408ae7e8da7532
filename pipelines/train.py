"""`nlft-ray train` on a cluster: ray job submit --working-dir . -- python pipelines/train.py --config FILE …"""

import sys

from nlft_ray.cli.main import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
