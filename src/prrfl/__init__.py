"""Personalised, retrogress-resilient federated learning on medical images (PRR-FL)."""
