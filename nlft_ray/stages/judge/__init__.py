"""judge: responses → examples, each incorrect response with a judgment, by the target model or by a server."""
