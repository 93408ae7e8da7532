"""`nlft-ray judge` on a cluster: ray job submit --working-dir . -- python pipelines/judge.py --config FILE …"""

import sys

from nlft_ray.cli.main import main

if __name__ == "__main__":
    main(["judge", *sys.argv[1:]])
