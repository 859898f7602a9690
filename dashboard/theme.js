// The theme that was chosen here before, set before anything is painted. Without a choice the system's is followed.
(() => {
  try {
    const theme = localStorage.getItem("refrain.theme");
    if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  } catch {
    // Storage may be switched off; the system's theme does.
  }
})();
