"""Build Parquet shards from raw media: plan, build in parallel, resume, merge and validate, all without torch."""
