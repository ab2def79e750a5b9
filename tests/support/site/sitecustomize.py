"""Change constants in a process of the service that a test starts."""

from tests.support.constants import install

install()
