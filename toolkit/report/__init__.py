"""``berxit report``: one HTML page for benches and evaluations. It needs no other file and no network."""
