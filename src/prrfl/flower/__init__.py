"""The same federation over real sites, on Flower: nothing but this room imports it."""
