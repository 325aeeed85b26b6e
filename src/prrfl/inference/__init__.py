"""Trained networks put to use: judged anew, exported, handed to hospitals that took no part."""
