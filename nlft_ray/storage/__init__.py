"""Folders on any filesystem, and files that appear whole or not at all."""
