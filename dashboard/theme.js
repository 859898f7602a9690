// Sets the chosen theme before the first paint. Without a choice, the theme of the system applies.
(() => {
  try {
    const theme = localStorage.getItem("refrain.theme");
    if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  } catch {
    // Storage can be disabled. The theme of the system then applies.
  }
})();
