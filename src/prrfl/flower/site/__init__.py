"""A site's end of a federation."""
