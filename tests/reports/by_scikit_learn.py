"""Measures that scikit-learn has no function for, from its curves."""

import numpy as np
from sklearn.metrics import roc_curve


def sensitivity(positive, values):
    """Return the largest sensitivity whose specificity is at least 90 %; NaN without one of both classes.

    By default scikit-learn drops points between others on a straight line, which may include this one.
    """
    if positive.all() or not positive.any():
        return np.nan
    false, right, _ = roc_curve(positive, values, drop_intermediate=False)
    return right[1 - false >= 0.9].max()
