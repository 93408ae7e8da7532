"""What stages share on disk: schemas, manifests, shards, audits."""
