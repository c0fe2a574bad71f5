"""From raw media to Parquet shards: planned, built in parallel, resumed, merged, checked; without torch."""
