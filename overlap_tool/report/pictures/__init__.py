"""Pictures of an analysis and of a certificate, as SVG."""
