"""The server's end of a federation."""
