"""The command line: nlft-ray STAGE key=value …."""
