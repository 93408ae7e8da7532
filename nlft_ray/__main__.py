"""`python -m nlft_ray`, the same as the command `nlft-ray`."""

from nlft_ray.cli.main import main

main()
