"""Any model, one loop: `recipes` say what is learnt, `documents` reads it, `data` orders it, `loop` trains, `state` and
`log` remember, `runs` opens and resumes."""
