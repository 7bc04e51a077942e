"""Studies: grids of pretrainings that are scored alike, and what may be concluded from them."""
