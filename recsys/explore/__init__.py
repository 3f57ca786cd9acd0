"""Looking into a space of item vectors: what is twice there, what belongs together, what is lost, what has changed.

`Space.of(bundle)` opens it; every finder takes a Space and gives DataFrames that speak of titles:

- `duplicates`: near-duplicate items, and the threshold that tells them
- `clusters`: groups of items, named after what their items share
- `outliers`: items that lie far from all others, and such that nobody's list holds
- `exposure`: hubs, items that are never recommended, popularity in lengths and scores
- `collapse`: how many directions the vectors use, uniformity and alignment
- `attributes`: values that are missing, from an item's neighbours
- `drift`: what became of items and users from one bundle to the next
- `leaks`: what the test part asks that training knew
- `dial`: what each dimension and each kind of index costs and finds
- `plane`: a map

`doctor.examine` asks all of these, and says what is wrong and what to do.

Two more stand beside them: `log`, a dataset's interactions and what a split makes of them; and `whatif`, a history to
edit, recommendations as tables, and what moved between two.
"""
