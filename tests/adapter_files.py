"""One item and one event in the files of each adapter of texts."""

ITEMS = '{"item_id": "B0", "title": "a"}\n'
LOG = '{"user_id": "u", "item_id": "B0", "timestamp": 5, "action": "buy"}\n'
REVIEW = '{"reviewerID": "u", "asin": "B0", "unixReviewTime": 5, "overall": 5}\n'
PRODUCT = '{"asin": "B0", "title": "a"}\n'
GOOD = {
    "jsonl": {"items.jsonl": ITEMS, "interactions.jsonl": LOG},
    "sequences": {"items.jsonl": ITEMS, "sequences.txt": "u B0\n"},
    "amazon": {"R.json": REVIEW, "meta_R.json": PRODUCT},
    "lcrec": {"A.item.json": '{"0": {"title": "a"}}', "A.inter.json": '{"u": [0, 0]}'},
    "recformer": {
        "smap.json": '{"B0": 0}',
        "meta_data.json": '{"B0": {"title": "a"}}',
        "train.json": '{"0": [0]}',
        "val.json": '{"0": [0]}',
        "test.json": '{"0": [0]}',
    },
    "recbole": {
        "a.item": "item_id:token\ttitle:token\nB0\ta\n",
        "a.inter": "user_id:token\titem_id:token\ttimestamp:float\nu\tB0\t5\n",
    },
    "csv": {
        "items.csv": "item_id,title,price\n1,a,3.5\n",
        "interactions.csv": "user_id,item_id,timestamp,action\n1,1,86400,buy\n",
        "impressions.csv": "user_id,item_id,timestamp,label\n1,1,86400,1\n",
    },
    "movielens 100k": {
        "u.data": "1\t1\t5\t86400\n",
        "u.item": "1|Toy Story (1995)|||" + "|0" * 19 + "\n",
    },
    "movielens 1m": {
        "ratings.dat": "1::1::5::86400\n",
        "movies.dat": "1::Toy Story (1995)::Comedy\n",
    },
    "movielens 20m": {
        "ratings.csv": "userId,movieId,rating,timestamp\n1,1,5,86400\n",
        "movies.csv": "movieId,title,genres\n1,Toy Story (1995),Comedy\n",
    },
}
