"""In an installed berxit, ``import runtime`` finds this package: another name for ``berxit.runtime``."""

from berxit.alias import install_alias

install_alias()
