"""Tests of the catalog. Every file they read is made by them."""
