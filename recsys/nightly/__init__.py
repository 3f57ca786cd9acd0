"""The nightly job: yesterday's log to a promoted bundle, or last night's left in place and why."""
