"""Tables on disk, in which stages meet: schemas, manifests, shards, audits."""
