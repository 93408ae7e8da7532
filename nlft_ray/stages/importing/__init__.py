"""Stage `import`: data from elsewhere → questions, responses or examples. Needs neither Ray nor torch."""
