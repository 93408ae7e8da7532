"""report: a run and its saliency map as one HTML file that needs nothing else, with a Markdown summary beside it."""
