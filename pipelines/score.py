"""`nlft-ray score` on a cluster: ray job submit --working-dir . -- python pipelines/score.py --config FILE …"""

import sys

from nlft_ray.cli.main import main

if __name__ == "__main__":
    main(["score", *sys.argv[1:]])
