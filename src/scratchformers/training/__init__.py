"""Any model, one loop: `recipes` say what is learnt, `data` orders it, `loop` trains, `state` and `log` remember,
`runs` opens and resumes."""
