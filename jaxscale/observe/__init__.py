"""What a run tells of itself: metrics, the environment, compilations, and the report page."""
