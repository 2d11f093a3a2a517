// highlight.js has no language for GNU assembler in Intel syntax, which guest.s is.
(() => {
    if (typeof hljs === "undefined") return;
    hljs.registerLanguage("asm", () => ({
        contains: [
            { className: "comment", begin: "#", end: "$" },
            { className: "meta", begin: /^\s*\.[a-z][a-z0-9]*/ },
            { className: "meta", begin: /\.[a-z]+\b/ },
            { className: "symbol", begin: /^[a-z_][a-z0-9_]*:/ },
            { className: "number", begin: /\b(0x[0-9a-f]+|[0-9]+)\b/ },
        ],
    }));
    document.querySelectorAll("code.language-asm").forEach((block) => {
        hljs.highlightBlock(block);
    });
})();
