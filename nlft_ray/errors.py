"""Errors that a user can repair: shown as one message without a stack trace, exit code 2."""


class UserError(Exception):
    """A mistake of the user: the message says what is wrong, where, what is allowed and what to do."""
