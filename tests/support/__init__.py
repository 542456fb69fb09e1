"""Networks, images and oracles that tests share."""

import pytest

pytest.register_assert_rewrite("support.dependence", "support.exactness")
