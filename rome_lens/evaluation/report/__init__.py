"""What an evaluation found: records, means, tables, figures and a page."""
