"""Parts that go with any rule, a paper each: what stands before it, behind it, or around it."""
