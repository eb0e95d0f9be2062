"""The report of a lake as documents and as a page: rendering only, every figure is `datalake_assets.core.report`'s."""
