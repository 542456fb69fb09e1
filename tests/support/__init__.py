"""Networks, images and oracles that tests share."""
