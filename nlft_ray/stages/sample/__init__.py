"""sample: questions → responses of the target model, each with a verdict."""
