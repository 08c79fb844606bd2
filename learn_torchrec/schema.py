"""Names of columns and files, all in one place.

Times are unix seconds (int64, UTC). Ids are int64 or string, the same type for a
column in every file of a data set.
"""

USER_ID = "user_id"
ITEM_ID = "item_id"
TIMESTAMP = "timestamp"
ACTION = "action"
LABEL = "label"
WEIGHT = "weight"
CLICK = "click"
SAMPLING_RATE = "sampling_rate"  # chance that a negative was kept; no feature
SCORE = "score"
VECTOR = "vector"

# The paper's six text fields, in the order the prompt renders them (section 3.1).
TITLE = "title"
CATEGORY = "category"
BRAND = "brand"
PRICE = "price"
KEYWORDS = "keywords"
ATTRIBUTES = "attributes"
ITEM_TEXT_FIELDS = (TITLE, CATEGORY, BRAND, PRICE, KEYWORDS, ATTRIBUTES)

# Files of a data set in our own schema (the `parquet:` adapter).
ITEMS_FILE = "items.parquet"
INTERACTIONS_FILE = "interactions.parquet"
IMPRESSIONS_FILE = "impressions.parquet"

# Files of the artefacts.
USER_VECTORS_FILE = "user_vectors.parquet"
ITEM_VECTORS_FILE = "item_vectors.parquet"
PREDICTIONS_FILE = "predictions.parquet"

# Key of a file's metadata: b"true" marks generated outcomes of an A/B test.
SIMULATED = b"simulated"

# Activity counts that predictions carry for the evaluation's cohorts: events
# strictly before the impression's day, within the cohort window.
USER_ACTIVITY = "user_activity"
ITEM_ACTIVITY = "item_activity"
