"""Checks for methods, networks and losses of your own: what the built-in ones are held to.

Each check raises an ``AssertionError`` that says what is wrong. Call them from a test:

    from prrfl.testing import check_method

    def test_my_method():
        check_method(MyMethod())
"""

from prrfl.testing.contract import check_loss, check_method, check_network

__all__ = ["check_loss", "check_method", "check_network"]
