"""A market that grows day by day, and settings that train on it in seconds."""

DAY = 86_400
NEW_ITEMS = range(136, 140)  # arrive on day 56
TABLES = ("items", "interactions", "impressions")
SETTINGS = [
    *("split.towers_until=60%", "split.min_events=4", "split.actions=like"),
    *("towers.training.epochs=2", "towers.training.batch_size=8"),
    *("towers.model.encoder.num_layers=1", "towers.model.encoder.width=16"),
    *("towers.model.encoder.num_heads=2", "ranker.training.batch_size=128"),
    *("ranker.features.dense=hour", "refresh.test_hours=12", "refresh.keep=3"),
    'ranker.features.sparse=[{"column": "user_id", "num_embeddings": 90}]',
    'refresh.gate=["uauc>=-1"]',
]
