"""A page that follows a run, a comparison or a federation while it goes on. It reads, and writes nothing."""
