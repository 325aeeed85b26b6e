"""The use of trained networks: evaluate, export, and onboard new sites."""
