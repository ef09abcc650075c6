// Before anything is drawn, so that nothing flashes: the theme that was chosen here before, else the system's.
try {
  const chosen = localStorage.getItem("theme");
  if (chosen) document.documentElement.dataset.theme = chosen;
} catch (_) { /* no storage: the system's */ }
